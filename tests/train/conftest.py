from pathlib import Path

import pytest

from tests.tiny import make_images, make_pipeline, make_pipeline_2, make_pipeline_xl


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def pipeline_2_folder(tmp_path_factory) -> Path:
    return make_pipeline_2(tmp_path_factory.mktemp("model") / "tiny-2")


@pytest.fixture(scope="session")
def pipeline_xl_folder(tmp_path_factory) -> Path:
    return make_pipeline_xl(tmp_path_factory.mktemp("model") / "tiny-xl")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images")
