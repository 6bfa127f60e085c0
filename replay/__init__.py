"""A durable replay service for LLM generations on Valkey Streams."""
