"""Equations as pure tensor functions: no modules, no configuration, no state."""
