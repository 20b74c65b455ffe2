# Who may do what, without a key anywhere: hosts by their instance profile, the pipeline by OpenID Connect.

variable "name" { type = string }
variable "repository_arn" { type = string }
variable "zone_arn" { type = string }
variable "kms_key" { type = string }
variable "issuer" {
  description = "Host of the pipeline's OpenID Connect issuer, such as token.actions.githubusercontent.com."
  type        = string
}
variable "subject" {
  description = "The only subject that may apply, such as repo:example/infrastructure:ref:refs/heads/main."
  type        = string
}
variable "pipeline_policy_arn" {
  description = "What the pipeline may do: the policy of the account, with no wildcard of its own."
  type        = string
}

data "aws_iam_policy_document" "hosts" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "database" {
  name               = "${var.name}-database"
  assume_role_policy = data.aws_iam_policy_document.hosts.json
}

resource "aws_iam_role" "controller" {
  name               = "${var.name}-controller"
  assume_role_policy = data.aws_iam_policy_document.hosts.json
}

data "aws_iam_policy_document" "database" {
  statement {
    actions   = ["s3:ListBucket", "s3:GetBucketLocation"]
    resources = [var.repository_arn]
  }
  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    resources = ["${var.repository_arn}/*"]
  }
  statement {
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.kms_key]
  }
}

data "aws_iam_policy_document" "controller" {
  statement {
    actions   = ["route53:ChangeResourceRecordSets", "route53:ListResourceRecordSets"]
    resources = [var.zone_arn]
  }
}

resource "aws_iam_role_policy" "database" {
  role   = aws_iam_role.database.id
  policy = data.aws_iam_policy_document.database.json
}

resource "aws_iam_role_policy" "controller" {
  role   = aws_iam_role.controller.id
  policy = data.aws_iam_policy_document.controller.json
}

resource "aws_iam_instance_profile" "database" {
  name = aws_iam_role.database.name
  role = aws_iam_role.database.name
}

resource "aws_iam_instance_profile" "controller" {
  name = aws_iam_role.controller.name
  role = aws_iam_role.controller.name
}

resource "aws_iam_openid_connect_provider" "pipeline" {
  url            = "https://${var.issuer}"
  client_id_list = ["sts.amazonaws.com"]
}

data "aws_iam_policy_document" "pipeline" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]
    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.pipeline.arn]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "${var.issuer}:sub"
      values   = [var.subject]
    }
  }
}

resource "aws_iam_role" "pipeline" {
  name               = "${var.name}-pipeline"
  assume_role_policy = data.aws_iam_policy_document.pipeline.json
}

resource "aws_iam_role_policy_attachment" "pipeline" {
  role       = aws_iam_role.pipeline.name
  policy_arn = var.pipeline_policy_arn
}

output "database_profile" { value = aws_iam_instance_profile.database.name }
output "controller_profile" { value = aws_iam_instance_profile.controller.name }
output "pipeline_role" { value = aws_iam_role.pipeline.arn }
