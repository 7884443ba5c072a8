# One key for all that rests: volumes, nodes' disks, Kubernetes secrets, backups. Google never deletes a key
# ring; a destroyed key's versions are gone for good after a month.

resource "google_kms_key_ring" "this" {
  project    = var.project
  location   = var.region
  name       = var.name
  depends_on = [google_project_service.this]
}

resource "google_kms_crypto_key" "this" {
  key_ring        = google_kms_key_ring.this.id
  name            = var.name
  rotation_period = "7776000s"
  labels          = local.labels
}

# GKE, Compute Engine and Cloud Storage do it in our name, each as an account of its own.
data "google_storage_project_service_account" "this" {
  project    = var.project
  depends_on = [google_project_service.this]
}

resource "google_kms_crypto_key_iam_member" "services" {
  for_each = {
    kubernetes = "service-${data.google_project.this.number}@container-engine-robot.iam.gserviceaccount.com"
    compute    = "service-${data.google_project.this.number}@compute-system.iam.gserviceaccount.com"
    storage    = data.google_storage_project_service_account.this.email_address
  }

  crypto_key_id = google_kms_crypto_key.this.id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:${each.value}"
  depends_on    = [google_project_service.this]
}
