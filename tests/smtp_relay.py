"""A mail relay on loopback that keeps what it takes: a real SMTP server in a thread."""

from __future__ import annotations

import contextlib
import email
import email.policy
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass
class Relay:
    """What a relay has seen. refuse_data: answer each mail with this instead of 250."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)
    connections: int = 0
    refuse_data: str = ""
    refuse_addresses: tuple[str, ...] = ()

    async def handle_RCPT(
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        if address in self.refuse_addresses:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        if self.refuse_data:
            return self.refuse_data
        content = envelope.content
        assert isinstance(content, bytes)
        mail = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        self.recipients.append(list(envelope.rcpt_tos))
        encryption = server.transport and server.transport.get_extra_info("ssl_object")
        self.encrypted.append(encryption is not None)
        return "250 taken"

    @property
    def subjects(self) -> list[str]:
        """The subjects, without what they have in common."""
        return [str(mail["Subject"]).partition(": ")[2] for mail in self.mails]

    def text(self, number: int = -1) -> str:
        """The text of a mail."""
        return str(self.mails[number].get_content())


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def mail_relay(
    security: str = "none",
    *,
    login: tuple[str, str] | None = None,
    ca_file: Path | None = None,
    port: int | None = None,
) -> Iterator[Relay]:
    """A relay with none, starttls or tls; its CA's certificate is put at ca_file."""
    relay = Relay(port or free_port())
    context = None
    if security != "none":
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        assert ca_file is not None
        authority.cert_pem.write_to_path(str(ca_file))

    def authenticate(
        server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        given = (data.login.decode(), data.password.decode())
        return AuthResult(success=given == login, handled=False)

    controller = Controller(
        relay,
        hostname="127.0.0.1",
        port=relay.port,
        ssl_context=context if security == "tls" else None,
        tls_context=context if security == "starttls" else None,
        require_starttls=security == "starttls",
        authenticator=authenticate if login else None,
        auth_required=login is not None,
        auth_require_tls=False,
    )
    with warnings.catch_warnings():
        # It knows of STARTTLS only, and takes a password under TLS for one in the clear.
        warnings.filterwarnings("ignore", "Requiring AUTH while not requiring TLS")
        controller.start()
        try:
            yield relay
        finally:
            controller.stop()


@contextlib.contextmanager
def silent_relay() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopping = threading.Event()
        taken: list[socket.socket] = []

        def accept() -> None:
            while not stopping.is_set():
                with contextlib.suppress(OSError):
                    taken.append(listener.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        stopping.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for each in taken:
            each.close()
