"""Being told to end raises where it is handled, and what is ignored stays ignored."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from graft.signals import exit_when_told


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_raises_with_the_code_of_a_shell(signum: signal.Signals, code: int) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(SystemExit) as told, exit_when_told():
        os.kill(os.getpid(), signum)
    assert told.value.code == code
    assert signal.getsignal(signum) == before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with exit_when_told():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_handles_no_signals() -> None:
    entered = []

    def enter() -> None:
        with exit_when_told():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [signal.getsignal(signal.SIGTERM)]
