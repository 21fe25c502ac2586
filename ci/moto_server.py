"""Serves moto, a double of AWS in memory, on a loopback port: python ci/moto_server.py PORT

moto looks whether a condition holds and then acts on it, and two threads of its own server may do so at once: then two
writers create the same object, which no store may allow. Here one request follows the other.
"""

import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple

double = DomainDispatcherApplication(create_backend_app)
turn = threading.Lock()


def one_after_another(environ, start_response):
    with turn:
        return list(double(environ, start_response))


# Connections that are kept, as every store keeps them.
WSGIRequestHandler.protocol_version = "HTTP/1.1"
run_simple("127.0.0.1", int(sys.argv[1]), one_after_another, threaded=True)
