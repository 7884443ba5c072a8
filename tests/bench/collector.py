"""An OTLP collector that takes everything and keeps nothing: collector.py PORT."""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc


class Everything(grpc.GenericRpcHandler):
    def service(self, details):
        # Bytes in, an empty message out: what is in them is not looked at.
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


server = grpc.server(ThreadPoolExecutor(max_workers=2))
server.add_generic_rpc_handlers((Everything(),))
server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
server.start()
server.wait_for_termination()
