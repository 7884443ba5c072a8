output "cluster_name" {
  description = "The name of the EKS cluster."
  value       = aws_eks_cluster.this.name
}

output "cluster_endpoint" {
  description = "Where the Kubernetes API is."
  value       = aws_eks_cluster.this.endpoint
}

output "context" {
  description = "The name of the context that kubeconfig_command makes."
  value       = var.name
}

output "kubeconfig_command" {
  description = "Writes the file `kubeconfig`, by which kubectl and modules/workload reach the cluster."
  value       = "aws eks update-kubeconfig --region ${data.aws_region.current.region} --name ${aws_eks_cluster.this.name} --alias ${var.name} --kubeconfig kubeconfig"
}

output "storage_class" {
  description = "What modules/workload makes the storage class of."
  value = {
    provisioner = "ebs.csi.aws.com"
    parameters = {
      type       = "gp3"
      encrypted  = "true"
      kmsKeyId   = aws_kms_key.this.arn
      iops       = tostring(var.volume_iops)
      throughput = tostring(var.volume_throughput)
    }
  }
  # A volume can be made when the driver runs.
  depends_on = [aws_eks_addon.ebs]
}

output "backup" {
  description = "Where backups go and as whom, for modules/workload."
  value = {
    url                         = "s3://${aws_s3_bucket.backup.bucket}"
    service_account             = var.backup_service_account
    service_account_annotations = { "eks.amazonaws.com/role-arn" = aws_iam_role.backup.arn }
  }
  depends_on = [aws_iam_role_policy.backup]
}

output "key_arn" {
  description = "The KMS key of volumes, secrets, backups and logs."
  value       = aws_kms_key.this.arn
}

output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "private_subnet_ids" {
  description = "The subnets of the nodes, by zone."
  value       = { for zone, subnet in aws_subnet.private : zone => subnet.id }
}
