"""What the tests share: comparison, cases, backends and the list of bad inputs."""
