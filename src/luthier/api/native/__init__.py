"""What OpenAI's wire format has no words for, one file a noun."""
