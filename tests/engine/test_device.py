import pytest
import torch

from gcond.engine.device import describe, pick


def test_cuda_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick("auto", threads=1) == torch.device("cpu")
    with pytest.raises(ValueError, match="`device`: found 'cuda:1', but PyTorch sees no CUDA device"):
        pick("cuda:1", threads=1)


def test_a_run_on_the_cpu_uses_the_threads_it_was_given() -> None:
    before = torch.get_num_threads()
    try:
        device = pick("cpu", threads=2)
        assert torch.get_num_threads() == 2
        assert describe(device).startswith("CPU, ")
        assert describe(device).endswith("2 thread(s) a run")
    finally:
        torch.set_num_threads(before)
