import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    """Verbs choose torch's thread count for their process, which here is that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
