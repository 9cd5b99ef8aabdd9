"""How the daemon judges a client's SVID: judge.py HOST:PORT CERT KEY prints `yes`, `no ALERT`, or `unclear WHY`.

A TLS 1.3 server decides after the client's handshake has ended, so only the bytes that are read show the result: HTTP/2, or an alert."""

import socket
import ssl
import sys

address, cert, key = sys.argv[1:4]
host, port = address.rsplit(":", 1)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.minimum_version = ssl.TLSVersion.TLSv1_3
# The identity of the server does not matter here.
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
context.load_cert_chain(cert, key)
try:
    with socket.create_connection((host, int(port)), timeout=8) as tcp, context.wrap_socket(tcp) as tls:
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        print("yes" if tls.recv(1) else "unclear closed")
except ssl.SSLError as error:
    print("no" if "ALERT" in (error.reason or "") else "unclear", error.reason)
except OSError as error:
    print("unclear", error)
