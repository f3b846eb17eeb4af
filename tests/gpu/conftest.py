from tests.train.conftest import image_folder, pipeline_folder, pipeline_xl_folder  # noqa: F401
