output "endpoint" {
  description = "Where clients inside the Kubernetes cluster find CloudPaxos."
  value       = module.cloudpaxos.endpoint
}
