"""The CLIP4STR microservice: REST and gRPC before one engine."""
