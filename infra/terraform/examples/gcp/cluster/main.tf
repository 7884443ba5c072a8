# The first step: everything around CloudPaxos. The second one is ../workload.

terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 7.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

module "cloudpaxos" {
  source = "../../../modules/gcp"

  project             = var.project
  region              = var.region
  name                = var.name
  api_cidrs           = var.api_cidrs
  deletion_protection = var.deletion_protection
}
