"""What survives a training step: modules that hold nothing but buffers."""
