import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from foundation_stereo_depth import signals
from foundation_stereo_depth.signals import one_interrupt, stop_signals
from foundation_stereo_depth.training.train import StopSignals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the handlers: after an interrupt they are kept until the process ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_only_the_first_signal_interrupts(first: signal.Signals) -> None:
    interrupts = 0
    with one_interrupt(stop_signals()):
        for number in (first, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, first):
            try:
                send(number)
            except KeyboardInterrupt:
                interrupts += 1
    send(signal.SIGINT)  # also after the command, while Python ends
    assert interrupts == 1


def test_ctrl_c_ends_a_process_that_does_not_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    monkeypatch.setattr(signals, "_GRACE_S", -1.0)
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    with one_interrupt([signal.SIGINT]):
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        send(signal.SIGINT)
    assert ended == [130]


def test_handlers_are_restored_where_nothing_came() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with one_interrupt(stop_signals()):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_started_to_survive_its_terminal_does() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in stop_signals()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_training_counts_signals_within_a_second_as_one(number: signal.Signals) -> None:
    with StopSignals() as stop:
        send(number)
        send(signal.SIGINT)
        assert stop.requested == number
        stop._requested_at_s -= 2.0
        if number != signal.SIGINT:
            send(number)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def on_terminal(code: str, act: Callable[[subprocess.Popen[bytes], int], None]) -> int:
    """Run Python code on a terminal, act on it once it has printed, and return its exit status."""
    terminal, own = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=own, stdout=own, stderr=own, start_new_session=True)
    os.close(own)
    os.read(terminal, 1)
    act(process, terminal)
    return process.wait(timeout=60)


def test_a_command_whose_terminal_is_closed_finishes_its_work() -> None:
    code = """
import fcntl, sys, termios, time
from pathlib import Path
from foundation_stereo_depth.options.command_line import run_command
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
def run():
    try:
        print("running", flush=True)
        time.sleep(60)
    finally:
        print("finishing", file=sys.stderr, flush=True)
        Path("finished").touch()
sys.exit(run_command("test", {}, run, finishes_files=True))
"""

    def close(process: subprocess.Popen[bytes], terminal: int) -> None:
        os.close(terminal)

    assert on_terminal(code, close) == 130
    assert Path("finished").exists()
