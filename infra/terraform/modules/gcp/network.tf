# One VPC with a subnet for the region. Nodes have no public addresses; what they fetch comes through NAT.

resource "google_project_service" "this" {
  for_each = toset([
    "cloudkms.googleapis.com", "compute.googleapis.com", "container.googleapis.com", "iam.googleapis.com",
    "iamcredentials.googleapis.com", "storage.googleapis.com",
  ])

  project = var.project
  service = each.key
  # Others may use it.
  disable_on_destroy = false
}

data "google_compute_zones" "available" {
  project    = var.project
  region     = var.region
  status     = "UP"
  depends_on = [google_project_service.this]
}

data "google_project" "this" {
  project_id = var.project
}

locals {
  zones  = length(var.zones) == 3 ? var.zones : slice(data.google_compute_zones.available.names, 0, 3)
  labels = merge(var.labels, { "cloudpaxos-cluster" = var.name })
}

resource "google_compute_network" "this" {
  project                 = var.project
  name                    = var.name
  auto_create_subnetworks = false
  depends_on              = [google_project_service.this]
}

resource "google_compute_subnetwork" "nodes" {
  project       = var.project
  region        = var.region
  name          = "${var.name}-nodes"
  network       = google_compute_network.this.id
  ip_cidr_range = var.network_cidrs.nodes
  # Backups go to their bucket without NAT.
  private_ip_google_access = true

  secondary_ip_range {
    range_name    = "pods"
    ip_cidr_range = var.network_cidrs.pods
  }

  secondary_ip_range {
    range_name    = "services"
    ip_cidr_range = var.network_cidrs.services
  }
}

# A regional service: no zone takes it with it.
resource "google_compute_router" "this" {
  project = var.project
  region  = var.region
  name    = var.name
  network = google_compute_network.this.id
}

resource "google_compute_router_nat" "this" {
  project                            = var.project
  region                             = var.region
  name                               = var.name
  router                             = google_compute_router.this.name
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "LIST_OF_SUBNETWORKS"

  subnetwork {
    name                    = google_compute_subnetwork.nodes.id
    source_ip_ranges_to_nat = ["ALL_IP_RANGES"]
  }

  log_config {
    enable = true
    filter = "ERRORS_ONLY"
  }
}
