"""What clients and operators see: routes over a `Server`, their schemas, limits and metrics, and gRPC."""
