"""The tiny model of the command's tests, for the parts under it."""

import pytest

from tests.cli.tiny import make_model, one_thread


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="package")
def tiny(tmp_path_factory):
    """The folder of the model."""
    return make_model(tmp_path_factory.mktemp("tiny") / "model")
