# The second step: CloudPaxos in the cluster that ../cluster has made.
#
# The first step's outputs come from its state file. Where state is kept elsewhere, name that backend here.

terraform {
  required_version = ">= 1.5"
}

data "terraform_remote_state" "cluster" {
  backend = "local"
  config  = { path = "${path.module}/../cluster/terraform.tfstate" }
}

module "cloudpaxos" {
  source = "../../../modules/workload"

  image         = var.image
  kubeconfig    = "${path.module}/../cluster/kubeconfig"
  context       = data.terraform_remote_state.cluster.outputs.context
  storage_class = data.terraform_remote_state.cluster.outputs.storage_class
  backup        = data.terraform_remote_state.cluster.outputs.backup
  remove_data   = var.remove_data
}
