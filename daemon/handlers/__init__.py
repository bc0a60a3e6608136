"""What is done about events: decisions, which see ports and plain data, never storage."""
