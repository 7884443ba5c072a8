output "kubeconfig_command" {
  description = "To be run before the second step."
  value       = module.cloudpaxos.kubeconfig_command
}

output "context" {
  description = "The context that the command makes."
  value       = module.cloudpaxos.context
}

output "storage_class" {
  description = "For the second step."
  value       = module.cloudpaxos.storage_class
}

output "backup" {
  description = "For the second step."
  value       = module.cloudpaxos.backup
}
