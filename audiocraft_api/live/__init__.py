"""Live sessions: they steer a running generation, pace it by its playback, and keep it as a performance."""
