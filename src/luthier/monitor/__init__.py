"""What is seen of models after their launch."""
