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
    tags = { Cluster = var.cluster, Site = "standby", ManagedBy = "terraform" }
  }
}

locals {
  cidr = "10.20.0.0/16"
  peer = "10.10.0.0/16"
  # Host name to subnet, one zone after the other.
  hosts = {
    for role, count in var.hosts : role => {
      for index in range(count) : "${var.cluster}-standby-${role}${index + 1}" => module.network.subnets[index % length(var.zones)]
    }
  }
}

resource "aws_kms_key" "this" {
  description             = "disks and backups of ${var.cluster}, standby"
  enable_key_rotation     = true
  deletion_window_in_days = 30
}

module "network" {
  source    = "../modules/network"
  name      = "${var.cluster}-standby"
  cidr      = local.cidr
  peer_cidr = local.peer
  zones     = var.zones
}

module "hosts" {
  source           = "../modules/hosts"
  for_each         = local.hosts
  name             = var.cluster
  role             = each.key
  hosts            = each.value
  image            = var.image
  instance_type    = var.instance_types[each.key]
  security_groups  = [module.network.security_group]
  instance_profile = each.key == "controller" ? var.controller_profile : var.database_profile
  kms_key          = aws_kms_key.this.arn
  data_gigabytes   = each.key == "database" ? var.data_gigabytes : 0
  package          = var.package
  configuration    = { for host, subnet in each.value : host => lookup(var.configuration, host, "") }
}

output "vpc" { value = module.network.vpc }
output "route_table" { value = module.network.route_table }
output "kms_key" { value = aws_kms_key.this.arn }
output "addresses" { value = { for role, hosts in module.hosts : role => hosts.addresses } }
