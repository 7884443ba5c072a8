output "endpoint" {
  description = "Where clients inside the Kubernetes cluster find CloudPaxos."
  value       = local.endpoint
  depends_on  = [terraform_data.workload]
}

output "namespace" {
  description = "The namespace that CloudPaxos is in."
  value       = local.namespace
  depends_on  = [terraform_data.workload]
}

output "files" {
  description = "What is laid over infra/k8s/overlays/production, by file name."
  value       = local.files
}
