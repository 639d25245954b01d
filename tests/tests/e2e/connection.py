"""What every Python client here begins with: a connection whose events are delivered, and patience."""

import threading
import time

import libvirt


def connect(uri):
    """Errors are raised and not printed; a thread delivers events."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_deliver, daemon=True).start()
    return libvirt.open(uri)


def _deliver():
    while True:
        libvirt.virEventRunDefaultImpl()


def wait(what, attempt, seconds=300):
    """What `attempt` finds, once it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = attempt()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


def refused(code, call, *arguments):
    """The message with which the call is refused."""
    try:
        call(*arguments)
    except libvirt.libvirtError as error:
        assert error.get_error_code() == code, (error.get_error_code(), str(error))
        return str(error)
    raise AssertionError(f"{call} should have been refused with {code}")
