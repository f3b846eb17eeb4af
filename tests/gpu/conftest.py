from tests.train.conftest import image_folder, pipeline_folder  # noqa: F401
