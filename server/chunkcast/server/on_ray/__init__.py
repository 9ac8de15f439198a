"""The same servicer as a Ray Serve deployment: replicas on one machine or many, behind Ray's gRPC proxy."""
