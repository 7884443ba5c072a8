output "endpoints" {
  description = "Where the nodes serve clients, one HOST:PORT each. Every one answers for the whole cluster."
  value       = [for name in local.names : local.clients[name]]
  depends_on  = [terraform_data.nodes]
}

output "ca_file" {
  description = "The CA that has signed what the nodes show to clients; null without TLS."
  value       = var.tls ? "${local.certs}/ca/clients.crt" : null
  depends_on  = [terraform_data.nodes]
}

output "client_certificate" {
  description = "Files of a client's certificate and key, which serve in place of a token; null without TLS."
  value       = var.tls ? { certificate = "${local.certs}/operator/tls.crt", key = "${local.certs}/operator/tls.key" } : null
  depends_on  = [terraform_data.nodes]
}

output "token_file" {
  description = "A file with an API token; null without TLS."
  value       = var.tls ? "${local.certs}/tokens" : null
  depends_on  = [terraform_data.nodes]
}

output "environment" {
  description = "Variables with which `cloudpaxos kv`, `status` and `shards` find this cluster and may use it."
  value = merge(
    { CLOUDPAXOS_ENDPOINTS = join(",", [for name in local.names : local.clients[name]]) },
    var.tls ? { CLOUDPAXOS_CACERT = "${local.certs}/ca/clients.crt", CLOUDPAXOS_TOKEN_FILE = "${local.certs}/tokens" } : {},
  )
  depends_on = [terraform_data.nodes]
}

output "log_files" {
  description = "What each node has logged, by its name."
  value       = { for name in local.names : name => "${var.directory}/${name}/node.log" }
  depends_on  = [terraform_data.nodes]
}

output "pid_files" {
  description = "Where each node's process id is, by the node's name."
  value       = { for name in local.names : name => "${var.directory}/${name}/pid" }
  depends_on  = [terraform_data.nodes]
}
