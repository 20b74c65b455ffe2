# The standby site: network, database hosts, proxies, controllers and application hosts of one region.
# docs/terraform.md says what was checked, and that these stacks were never applied.

terraform {
  required_version = ">= 1.10"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
  # terraform init -backend-config=backend.hcl: bucket, key, region, kms_key_id. Locked by S3 itself.
  backend "s3" {
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region
  # The pipeline's identity comes from OpenID Connect; there is no key in any file.
  default_tags {
    tags = { Cluster = var.settings.cluster, Site = "standby", ManagedBy = "terraform" }
  }
}

locals {
  cidr = "10.20.0.0/16"
  peer = "10.10.0.0/16"
}

module "site" {
  source             = "../modules/site"
  site               = "standby"
  cidr               = local.cidr
  peer_cidr          = local.peer
  database_profile   = var.database_profile
  controller_profile = var.controller_profile
  settings           = var.settings
}

output "vpc" { value = module.site.vpc }
output "route_table" { value = module.site.route_table }
output "kms_key" { value = module.site.kms_key }
output "addresses" { value = module.site.addresses }
