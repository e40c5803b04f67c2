"""How a request ended, where nobody inside could say: the client left, or the app failed."""

from __future__ import annotations

from largeforge.call import Call

SERVER_ERROR = "server_error"
CLIENT_LEFT = 499


def settle(call: Call, fault: BaseException | None) -> None:
    """Give a call its final status and error; once said, they stay.

    499 where the answer is not whole and nobody gave a reason: then its client is gone. 500 where the app raised before it sent
    anything; later the status that was sent stays, and the error tells.

    Args:
        call: of the request.
        fault: what the app inside raised; None where it returned.
    """
    if call.whole or call.status == CLIENT_LEFT:
        return
    if isinstance(fault, Exception):
        call.error = call.error or SERVER_ERROR
        if not call.begun:
            call.status = 500
    elif not call.error:
        call.status = CLIENT_LEFT
