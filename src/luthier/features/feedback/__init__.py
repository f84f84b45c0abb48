"""What people say of answers, and its review."""
