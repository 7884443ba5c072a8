# The first step: everything around CloudPaxos. The second one is ../workload.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region = var.region
}

module "cloudpaxos" {
  source = "../../../modules/aws"

  name      = var.name
  api_cidrs = var.api_cidrs
}
