"""What went wrong in a bucket, in words: the libraries' exceptions sorted into a few kinds, none of them with a secret inside.

Looks at exceptions by name, so that no storage library is imported to read another one's error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Literal

Kind = Literal["missing", "credentials", "denied", "unreachable", "passing", "exists", "other"]

_SECRETS: tuple[str, ...] = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_SAS_TOKEN",
)
_SECRETS += ("AZURE_STORAGE_CLIENT_SECRET", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SIGNED = re.compile(
    r"(?i)\b(sig|signature|accountkey|sharedaccesssignature|x-amz-signature|x-amz-credential|x-amz-security-token|access_token|token)=[^&;\s\"']+"
)
_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError", "CredentialUnavailableError"}
_CREDENTIALS |= {"TokenRetrievalError", "NoAuthTokenError", "UnauthorizedSSOTokenError", "ProfileNotFound", "CredentialRetrievalError"}
_UNREACHABLE = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ProxyConnectionError",
    "ClientConnectorError",
    "ClientConnectorDNSError",
}
_UNREACHABLE |= {"ServiceRequestError", "gaierror", "ConnectionRefusedError", "InvalidEndpointDiscoveryConfigurationError", "SSLError", "ProxyError"}
_PASSING = {"ReadTimeoutError", "HTTPClientError", "IncompleteReadError", "ResponseStreamingError", "ClientPayloadError", "ServerDisconnectedError"}
_PASSING |= {"IncompleteRead", "FSTimeoutError", "ServiceResponseError", "ChecksumError", "ClientOSError", "ServerTimeoutError", "ResponseParserError"}
_PASSING |= {"TimeoutError", "ConnectionResetError", "BrokenPipeError", "Timeout", "ChunkedEncodingError", "ConnectionError"}
_WRONG_KEY = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthenticationFailed",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
    "ExpiredTokenException",
}


def kind_of(fault: BaseException) -> Kind:
    """Sort an exception of s3fs, gcsfs, adlfs or what lies below them."""
    chain = list(_chain(fault))
    names = {type(link).__name__ for link in chain}
    codes = {code for link in chain for code in _codes(link)}
    text = " ".join(str(link) for link in chain)
    if any(isinstance(link, FileExistsError) for link in chain) or codes & {"PreconditionFailed", "412", "ConditionalRequestConflict"}:
        return "exists"
    if names & _CREDENTIALS or codes & (_WRONG_KEY | {"401"}) or "Must provide either a connection_string" in text or "Anonymous caller" in text:
        return "credentials"
    if any(isinstance(link, PermissionError) for link in chain) or codes & {"403", "AccessDenied"} or text.startswith("Forbidden"):
        return "denied"
    if names & _UNREACHABLE:
        return "unreachable"
    if names & _PASSING or any(code.isdigit() and (code in ("408", "429") or code.startswith("5")) for code in codes):
        return "passing"
    if codes & {"InternalError", "SlowDown", "ServiceUnavailable", "InternalServerError", "RequestTimeout", "ServerBusy", "Throttling"}:
        return "passing"
    if any(isinstance(link, FileNotFoundError) for link in chain) or codes & {"404", "NoSuchBucket", "NoSuchKey", "ContainerNotFound", "BlobNotFound"}:
        return "missing"
    return "other"


def without_secrets(text: str) -> str:
    """Replace what the environment holds as a secret, and signatures inside URLs."""
    for name in _SECRETS:
        value = os.environ.get(name, "")
        if len(value) > 3:
            text = text.replace(value, "***")
    return _SIGNED.sub(r"\1=***", text)


def said(fault: BaseException) -> str:
    """The first line of what an exception says, its kind where it says nothing; without secrets."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return without_secrets(lines[0][:300]).rstrip(".") if lines else type(fault).__name__


def _chain(fault: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while fault is not None and id(fault) not in seen:
        seen.add(id(fault))
        yield fault
        fault = fault.__cause__ or fault.__context__


def _codes(fault: BaseException) -> Iterator[str]:
    """Status and error code, wherever the library keeps them: botocore, gcsfs, Azure, aiohttp."""
    response = getattr(fault, "response", None)
    if isinstance(response, dict):
        yield str(response.get("Error", {}).get("Code", ""))
        yield str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    for name in ("code", "status", "status_code", "error_code"):
        value = getattr(fault, name, None)
        if isinstance(value, (int, str)):
            yield str(getattr(value, "value", value))
