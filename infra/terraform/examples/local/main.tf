# Three nodes on this machine:
#
#   terraform init && terraform apply -var binary=PROGRAM
#   terraform output
#
# and `terraform destroy` stops them.

terraform {
  required_version = ">= 1.5"
}

module "cloudpaxos" {
  source = "../../modules/local"

  directory   = abspath(var.directory)
  binary      = var.binary
  nodes       = var.nodes
  client_port = var.client_port
  peer_port   = var.peer_port
  tls         = var.tls
  settings    = var.settings
  remove_data = var.remove_data
}
