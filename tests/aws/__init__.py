"""A local AWS that runs what it is asked to: moto's server, with a SageMaker whose jobs and endpoints are processes."""
