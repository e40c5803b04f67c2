"""The gRPC service as data: inference.proto, and what protoc makes of it.

python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. largeforge/serve/proto/inference.proto
"""
