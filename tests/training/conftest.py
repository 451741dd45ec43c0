"""The tiny model of the command's tests, for the parts under it."""

import pytest
import torch

from tests.cli.tiny import make_model


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def tiny(tmp_path_factory):
    """The folder of the model."""
    return make_model(tmp_path_factory.mktemp("tiny") / "model")
