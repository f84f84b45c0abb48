"""What a model's figures have to be before it is deployed."""
