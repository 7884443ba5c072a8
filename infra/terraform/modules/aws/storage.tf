# The driver that makes volumes. The class itself is an object of Kubernetes: modules/workload makes it
# from the output `storage_class`.

resource "aws_iam_role" "ebs" {
  name               = "${var.name}-ebs"
  assume_role_policy = data.aws_iam_policy_document.service_account_assume["ebs"].json
  tags               = local.tags
}

resource "aws_iam_role_policy_attachment" "ebs" {
  role       = aws_iam_role.ebs.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy"
}

data "aws_iam_policy_document" "ebs_key" {
  statement {
    actions   = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"]
    resources = [aws_kms_key.this.arn]
  }

  # EBS attaches an encrypted volume by a grant, and only for that.
  statement {
    actions   = ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"]
    resources = [aws_kms_key.this.arn]

    condition {
      test     = "Bool"
      variable = "kms:GrantIsForAWSResource"
      values   = ["true"]
    }
  }
}

resource "aws_iam_role_policy" "ebs_key" {
  name   = "key"
  role   = aws_iam_role.ebs.name
  policy = data.aws_iam_policy_document.ebs_key.json
}

resource "aws_eks_addon" "ebs" {
  cluster_name             = aws_eks_cluster.this.name
  addon_name               = "aws-ebs-csi-driver"
  service_account_role_arn = aws_iam_role.ebs.arn
  tags                     = local.tags
  depends_on               = [aws_eks_node_group.this, aws_iam_role_policy.ebs_key, aws_iam_role_policy_attachment.ebs]
}
