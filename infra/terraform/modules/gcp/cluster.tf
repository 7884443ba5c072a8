resource "google_service_account" "nodes" {
  project      = var.project
  account_id   = "${var.name}-nodes"
  display_name = "Nodes of the CloudPaxos cluster ${var.name}"
  depends_on   = [google_project_service.this]
}

# Logs and metrics out, images in, and nothing else. The project's default account could do nearly all.
resource "google_project_iam_member" "nodes" {
  for_each = toset(["roles/artifactregistry.reader", "roles/container.defaultNodeServiceAccount"])

  project = var.project
  role    = each.key
  member  = google_service_account.nodes.member
}

resource "google_container_cluster" "this" {
  project        = var.project
  name           = var.name
  location       = var.region
  node_locations = local.zones

  network         = google_compute_network.this.id
  subnetwork      = google_compute_subnetwork.nodes.id
  networking_mode = "VPC_NATIVE"
  # Cilium: CloudPaxos' network policies hold only where somebody enforces them.
  datapath_provider = "ADVANCED_DATAPATH"

  # The pool that comes with a cluster cannot be changed later; ours is below.
  remove_default_node_pool = true
  initial_node_count       = 1
  deletion_protection      = var.deletion_protection
  resource_labels          = local.labels

  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }

  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = length(var.api_cidrs) == 0
    master_ipv4_cidr_block  = var.control_plane_cidr
  }

  master_authorized_networks_config {
    dynamic "cidr_blocks" {
      for_each = var.api_cidrs

      content {
        cidr_block = cidr_blocks.value
      }
    }
  }

  release_channel {
    channel = var.release_channel
  }

  # By this, service accounts of Kubernetes become accounts of the project.
  workload_identity_config {
    workload_pool = "${var.project}.svc.id.goog"
  }

  database_encryption {
    state    = "ENCRYPTED"
    key_name = google_kms_crypto_key.this.id
  }

  addons_config {
    gce_persistent_disk_csi_driver_config {
      enabled = true
    }
  }

  # The pool that is removed needs an account, too, and must not be the project's default one.
  node_config {
    service_account = google_service_account.nodes.email
    oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
  }

  lifecycle {
    ignore_changes = [node_config]
  }

  depends_on = [google_kms_crypto_key_iam_member.services, google_project_iam_member.nodes]
}

resource "google_container_node_pool" "this" {
  project            = var.project
  name_prefix        = "nodes-"
  cluster            = google_container_cluster.this.id
  node_locations     = local.zones
  initial_node_count = var.nodes_per_zone.min

  # Per zone: a volume cannot leave its zone, so a replica that needs a node needs it there.
  autoscaling {
    min_node_count  = var.nodes_per_zone.min
    max_node_count  = var.nodes_per_zone.max
    location_policy = "BALANCED"
  }

  management {
    auto_repair  = true
    auto_upgrade = true
  }

  # One at a time, and a new one before an old one goes.
  upgrade_settings {
    max_surge       = 1
    max_unavailable = 0
  }

  node_config {
    machine_type      = var.machine_type
    disk_type         = "pd-ssd"
    disk_size_gb      = 50
    boot_disk_kms_key = google_kms_crypto_key.this.id
    service_account   = google_service_account.nodes.email
    oauth_scopes      = ["https://www.googleapis.com/auth/cloud-platform"]
    resource_labels   = local.labels

    shielded_instance_config {
      enable_secure_boot          = true
      enable_integrity_monitoring = true
    }

    # No pod gets at the node's own credentials.
    workload_metadata_config {
      mode = "GKE_METADATA"
    }
  }

  # Whoever scales has the say about the number, within the bounds.
  lifecycle {
    create_before_destroy = true
    ignore_changes        = [initial_node_count]
  }
}
