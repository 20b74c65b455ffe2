# The primary site: network, database hosts, proxies, controllers and application hosts of one region.
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
    tags = { Cluster = var.settings.cluster, Site = "primary", ManagedBy = "terraform" }
  }
}

locals {
  cidr = "10.10.0.0/16"
  peer = "10.20.0.0/16"
}

module "site" {
  source             = "../modules/site"
  site               = "primary"
  cidr               = local.cidr
  peer_cidr          = local.peer
  database_profile   = module.identity.database_profile
  controller_profile = module.identity.controller_profile
  # Two controllers here and one there: a majority survives the loss of the standby site.
  settings = merge({ hosts = { database = 2, proxy = 2, controller = 2, application = 1 } }, var.settings)
}

output "vpc" { value = module.site.vpc }
output "route_table" { value = module.site.route_table }
output "kms_key" { value = module.site.kms_key }
output "addresses" { value = module.site.addresses }
