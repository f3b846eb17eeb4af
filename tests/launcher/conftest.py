from pathlib import Path

import pytest

# What needs torch is imported when it is asked for: most tests of the launcher need none.


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import make_pipeline

    return make_pipeline(tmp_path_factory.mktemp("local") / "model")


@pytest.fixture(scope="session")
def trained(model: Path) -> object:
    from tests.launcher.runs import Trained

    return Trained(model)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    from tests.launcher.desk import Desk

    return Desk(tmp_path, monkeypatch)
