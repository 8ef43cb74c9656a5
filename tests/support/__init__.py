"""The parts that tests share: comparison, cases, backends and the list of bad inputs."""
