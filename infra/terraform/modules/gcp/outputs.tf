output "cluster_name" {
  description = "The name of the GKE cluster."
  value       = google_container_cluster.this.name
}

output "cluster_endpoint" {
  description = "Where the Kubernetes API is."
  value       = google_container_cluster.this.endpoint
}

output "context" {
  description = "The name of the context that kubeconfig_command makes."
  value       = "gke_${var.project}_${var.region}_${google_container_cluster.this.name}"
}

output "kubeconfig_command" {
  description = "Writes the file `kubeconfig`, by which kubectl and modules/workload reach the cluster."
  value       = "KUBECONFIG=kubeconfig gcloud container clusters get-credentials ${google_container_cluster.this.name} --project ${var.project} --region ${var.region}"
}

output "storage_class" {
  description = "What modules/workload makes the storage class of."
  value = {
    provisioner = "pd.csi.storage.gke.io"
    parameters = {
      type                      = "pd-ssd"
      "disk-encryption-kms-key" = google_kms_crypto_key.this.id
    }
  }
  # A volume can be made when there are nodes and the key may be used.
  depends_on = [google_container_node_pool.this, google_kms_crypto_key_iam_member.services]
}

output "backup" {
  description = "Where backups go and as whom, for modules/workload."
  value = {
    url                         = "gs://${google_storage_bucket.backup.name}"
    service_account             = var.backup_service_account
    service_account_annotations = { "iam.gke.io/gcp-service-account" = google_service_account.backup.email }
  }
  depends_on = [google_service_account_iam_member.backup, google_storage_bucket_iam_member.backup]
}

output "key_id" {
  description = "The KMS key of volumes, disks, secrets and backups."
  value       = google_kms_crypto_key.this.id
}

output "network_id" {
  description = "The VPC."
  value       = google_compute_network.this.id
}
