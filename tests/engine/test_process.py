import os
import signal
import threading

import pytest

from gcond.engine.process import SIGNALS, Interrupt

EACH = pytest.mark.parametrize("which", SIGNALS)


@pytest.fixture
def heard():
    """What reaches the handlers that were there before."""
    numbers: list[int] = []

    def note(number, frame):
        numbers.append(number)

    before = {which: signal.signal(which, note) for which in SIGNALS}
    yield numbers
    for which, handler in before.items():
        signal.signal(which, handler)


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@EACH
def test_the_first_signal_is_noted_and_the_second_acts_as_it_would_have(which, heard, clock):
    with Interrupt() as interrupt:
        assert interrupt.number == 0
        signal.raise_signal(which)
        assert interrupt.number == which
        assert heard == []
        clock[0] += 1.1
        signal.raise_signal(which)
        assert heard == [which]


def test_nohup_is_kept():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
        assert interrupt.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_that_comes_twice_at_once_is_one_signal_and_ctrl_c_twice_is_not(heard, clock):
    """A batch system sends SIGTERM to every process, and torchrun passes its own on."""
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            clock[0] += 0.3
        assert heard == []
        assert interrupt.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGINT]


def test_the_user_is_told_what_comes_next_even_without_a_terminal(heard, capfd, monkeypatch):
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
    assert "SIGINT" in capfd.readouterr().err
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads any more
    monkeypatch.setattr("gcond.engine.process.STDERR", writer)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
    os.close(writer)
    assert interrupt.number == signal.SIGINT


def test_another_thread_leaves_signals_alone(heard):
    before = [signal.getsignal(which) for which in SIGNALS]
    found = []

    def work():
        with Interrupt():
            found.append([signal.getsignal(which) for which in SIGNALS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
