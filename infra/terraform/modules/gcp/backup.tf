# Where backups go, and the account for them. It may add, replace and read; what it replaces or deletes
# stays as an older version until its days are over.

resource "google_storage_bucket" "backup" {
  project = var.project
  # Names of buckets are unique in the world; so is the project's id.
  name                        = "${var.project}-${var.name}-backup"
  location                    = var.region
  storage_class               = "STANDARD"
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = var.backup_remove
  labels                      = local.labels

  versioning {
    enabled = true
  }

  encryption {
    default_kms_key_name = google_kms_crypto_key.this.id
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      days_since_noncurrent_time = var.backup_days
      with_state                 = "ARCHIVED"
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }

    condition {
      age = 7
    }
  }

  depends_on = [google_kms_crypto_key_iam_member.services]
}

resource "google_service_account" "backup" {
  project      = var.project
  account_id   = "${var.name}-backup"
  display_name = "Backups of the CloudPaxos cluster ${var.name}"
  depends_on   = [google_project_service.this]
}

# Objects, not the bucket's own settings.
resource "google_storage_bucket_iam_member" "backup" {
  bucket = google_storage_bucket.backup.name
  role   = "roles/storage.objectUser"
  member = google_service_account.backup.member
}

resource "google_service_account_iam_member" "backup" {
  service_account_id = google_service_account.backup.name
  role               = "roles/iam.workloadIdentityUser"
  # The pool that this names is there when the cluster is.
  member = "serviceAccount:${google_container_cluster.this.workload_identity_config[0].workload_pool}[cloudpaxos/${var.backup_service_account}]"
}
