from tests.launcher.conftest import desk

__all__ = ["desk"]
