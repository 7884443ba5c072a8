output "endpoints" {
  description = "Where the nodes serve clients."
  value       = module.cloudpaxos.endpoints
}

output "ca_file" {
  description = "The CA that has signed the nodes' certificates."
  value       = module.cloudpaxos.ca_file
}

output "client_certificate" {
  description = "A client's certificate and key."
  value       = module.cloudpaxos.client_certificate
}

output "token_file" {
  description = "A file with an API token."
  value       = module.cloudpaxos.token_file
}

output "environment" {
  description = "Variables for `cloudpaxos kv` and its like."
  value       = module.cloudpaxos.environment
}

output "pid_files" {
  description = "Where each node's process id is."
  value       = module.cloudpaxos.pid_files
}
